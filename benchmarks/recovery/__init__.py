"""How often a run saves itself: sick programs, ways to deal with them, and healthy runs that must be left alone."""
