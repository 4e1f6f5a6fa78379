"""What the admin is asked not to show, by ADMIN_HIDES: results, say, which have their pages here."""

from django.apps import apps
from django.contrib import admin

from tasks_app.conf import conf

for label in conf.ADMIN_HIDES:
    for model in apps.get_app_config(label).get_models() if label in apps.app_configs else ():
        if admin.site.is_registered(model):
            admin.site.unregister(model)
