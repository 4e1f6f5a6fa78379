"""Django: a model's form that checks some of its fields itself, with words and places of its own."""

from typing import Any

from django import forms

from tasks_app.seams import Seam

NAMES = (
    Seam(
        "django.forms.models:BaseModelForm",
        "_get_validation_exclusions",
        "(self)",
        "The one error of a field in the admin, where there would be two",
        "Django lets a form leave a field out of its model's validation by leaving it out of the form alone.",
    ),
)


class PartlyValidated(forms.ModelForm):
    #: Fields that the form checks, and its model's validation is not to.
    checked_here: frozenset[str] = frozenset()

    def _get_validation_exclusions(self) -> Any:
        return super()._get_validation_exclusions() | self.checked_here  # type: ignore[misc]
