"""Keep what a failed step needs to be run again, and what a run needs to go back."""
