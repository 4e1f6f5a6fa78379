"""cronsim: its fields one by one. It parses expressions as a whole, and says of none which field is wrong."""

from cronsim.cronsim import RANGES, Field

from tasks_app.seams import THERE, Seam

__all__ = ["RANGES", "Field"]

_WHY = "cronsim's public CronSim tells of an expression that cannot be read, but not of which item in it."
NAMES = (
    Seam("cronsim.cronsim:", "RANGES", THERE, "The error that names a cron field", _WHY),
    Seam("cronsim.cronsim:Field", "parse", "(self, s)", "The error that names a cron field", _WHY),
    Seam("cronsim.cronsim:Field", "int", "(self, s)", "The error that names a cron field", _WHY),
)
