"""A small shop, written like the projects that the console is added to; it knows of the console what a README says."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
