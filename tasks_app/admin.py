"""What the admin does not show: results, which have their pages, and Beat's schedules where Beat is not used."""

from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django_celery_results.models import GroupResult, TaskResult

hidden = [TaskResult, GroupResult]
if not settings.BEAT_ENABLED and apps.is_installed("django_celery_beat"):
    hidden += apps.get_app_config("django_celery_beat").get_models()

for model in hidden:
    if admin.site.is_registered(model):
        admin.site.unregister(model)

admin.site.enable_nav_sidebar = False  # the site's own navigation is on every page
