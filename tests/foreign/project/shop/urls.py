from django.conf import settings
from django.contrib import admin
from django.urls import include, path
from orders import views

urlpatterns = [
    path("", views.front, name="front"),
    path("order/<str:item>/", views.order, name="order"),
    path("ops/", include("taskconsole.urls")),
]
if settings.SHOP_ADMIN == "separate":
    from orders.admin import office

    urlpatterns.append(path("office/", office.urls))
else:
    urlpatterns.append(path("office/", admin.site.urls))
