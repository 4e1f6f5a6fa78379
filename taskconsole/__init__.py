"""What makes one console of two apps, and this site's own wiring: settings, Celery app, URLs, `manage.py up`."""
