"""Settings of the peer, where they matter those that its users have: the rest is Celery's and Django's default."""

import os

import dj_database_url

SECRET_KEY = "benchmarks"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.contenttypes", "django_celery_results", "django_celery_beat"]
DATABASES = {"default": dj_database_url.parse(os.environ["DATABASE_URL"], conn_max_age=None)}

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
CELERY_RESULT_BACKEND = os.environ.get("PEER_RESULT_BACKEND") or None
CELERY_RESULT_EXTENDED = CELERY_TASK_TRACK_STARTED = CELERY_RESULT_BACKEND == "django-db"
CELERY_RESULT_EXPIRES = None  # as the console's: no clean-up entry among beat's schedules
