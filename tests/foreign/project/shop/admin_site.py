from django.contrib.admin import AdminSite


class ShopAdmin(AdminSite):
    site_header = site_title = "The shop's office"
