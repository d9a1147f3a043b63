"""Stage one: the frozen teacher and the dump. Nothing here is imported where a student is trained."""

from kdcache.teacher.dump import DumpResult, Estimate, dump, estimate
from kdcache.teacher.frozen import FrozenTeacher, load_teacher

__all__ = ["DumpResult", "Estimate", "FrozenTeacher", "dump", "estimate", "load_teacher"]
