"""Settings as a project has them. What the tests vary is in the environment, as SHOP_…; the console is at the end."""

import os
from pathlib import Path
from urllib.parse import urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = "of the shop"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_USER_MODEL = "accounts.Member"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

#: "own": the default site is of a class of the shop's. "separate": the shop has a site beside the default one, which
#: it shows nobody. "plain": Django's.
SHOP_ADMIN = os.environ.get("SHOP_ADMIN", "own")

INSTALLED_APPS = [
    "shop.apps.ShopAdminConfig" if SHOP_ADMIN == "own" else "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "accounts",
    "orders",
    "django_celery_beat",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "shop.middleware.strict_csp",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "shop.middleware.branch",
            ],
        },
    }
]

_url = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _url.hostname,
        "PORT": _url.port,
        "USER": _url.username,
        "PASSWORD": _url.password or "",
        "NAME": _url.path[1:],
        "ATOMIC_REQUESTS": True,
    }
}
if replica := os.environ.get("SHOP_REPLICA"):
    # A replica that is always behind: another database, whose tables are empty.
    DATABASES["replica"] = {**DATABASES["default"], "NAME": replica, "TEST": {"MIRROR": "default"}}
    DATABASE_ROUTERS = ["shop.routers.ReadsFromReplica"]

LANGUAGE_CODE = os.environ.get("SHOP_LANGUAGE", "en-us")
USE_THOUSAND_SEPARATOR = True
USE_TZ = os.environ.get("SHOP_USE_TZ", "1") == "1"
TIME_ZONE = os.environ.get("SHOP_TIME_ZONE", "UTC")
STATIC_URL = "static/"
if login_url := os.environ.get("SHOP_LOGIN_URL"):
    LOGIN_URL = login_url
if script_name := os.environ.get("SHOP_SCRIPT_NAME"):
    FORCE_SCRIPT_NAME = script_name

CELERY = {
    "BROKER_URL": os.environ["REDIS_URL"],
    "TASK_DEFAULT_QUEUE": "shop",
    "TASK_QUEUES": {"shop": {}, "mail": {}, "slow": {}},
    "TASK_ROUTES": {"orders.tasks.mail_*": {"queue": "mail"}, "orders.tasks.report": {"queue": "slow"}},
    "TASK_EAGER_PROPAGATES": True,
    "BEAT_SCHEDULER": "django_celery_beat.schedulers:DatabaseScheduler",
}

if os.environ.get("SHOP_EAGER"):  # not as False else: Celery 5.6 would have that go before what a test sets
    CELERY["TASK_ALWAYS_EAGER"] = True

# The console
INSTALLED_APPS += ["django_celery_results", "django_htmx", "tasks_app", "scheduling_app", "taskconsole"]
CELERY["RESULT_BACKEND"] = "tasks_app.backend:RecordBackend"

globals().update({f"{os.environ.get('SHOP_NAMESPACE', 'CELERY')}_{name}": value for name, value in CELERY.items()})
