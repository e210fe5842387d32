"""The programs, a file a suite."""

from benchmarks.external.programs import deepmufl, grist, healthy, reproduced

PROGRAMS = [*grist.PROGRAMS, *reproduced.PROGRAMS, *deepmufl.PROGRAMS, *healthy.PROGRAMS]
