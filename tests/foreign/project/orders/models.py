from django.db import models


class Order(models.Model):
    item = models.CharField(max_length=100)
    made_at = models.DateTimeField(auto_now_add=True)
    shipped_at = models.DateTimeField(null=True, blank=True)

    def __str__(self):
        return self.item
