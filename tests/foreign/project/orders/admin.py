import os

from django.contrib import admin
from shop.admin_site import ShopAdmin

from orders.models import Order

#: A site of the shop's beside the default one (SHOP_ADMIN=separate), which it shows nobody.
office = ShopAdmin(name="office")
office.register(Order)
admin.site.register(Order)

if os.environ.get("SHOP_OFFICE_HAS_SCHEDULES"):
    from scheduling_app.admin import CalendarAdmin, ScheduleAdmin
    from scheduling_app.models import Calendar, Schedule

    office.register(Schedule, ScheduleAdmin)
    office.register(Calendar, CalendarAdmin)
