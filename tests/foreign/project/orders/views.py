from django.http import HttpResponse
from django.shortcuts import render

from orders.models import Order
from orders.tasks import report, ship


def front(request):
    return render(request, "orders/front.html", {"orders": Order.objects.using("default").count()})


def order(request, item):
    """Sends within the request's transaction; a teapot is refused after that, which takes it all back."""
    made = Order.objects.create(item=item)
    sent = ship.delay(made.pk)
    report.apply_async(countdown=3600)
    if item == "teapot":
        raise RuntimeError("I am one.")
    return HttpResponse(sent.id)
