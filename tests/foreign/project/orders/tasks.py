from celery import shared_task
from django.utils import timezone

from orders.models import Order


@shared_task(bind=True, max_retries=2)
def ship(self, order_id):
    """Ship an order; one that cannot be found is looked for again."""
    try:
        order = Order.objects.using("default").get(pk=order_id)
    except Order.DoesNotExist as error:
        raise self.retry(exc=error, countdown=1) from error
    order.shipped_at = timezone.now()
    order.save(using="default")
    mail_customer.delay(order.pk)
    return f"{order.item} is on its way from {self.request.headers['branch']}"


@shared_task
def mail_customer(order_id):
    return f"mailed about {order_id}"


@shared_task
def report(title="daily"):
    return f"{title} report"


@shared_task
def broken():
    raise ValueError("no shelf is left")
