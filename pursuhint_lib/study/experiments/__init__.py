"""The questions of the study, one file each: what it trains, and the frames that its notebook draws."""
