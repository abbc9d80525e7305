"""What the kernel costs, what this project costs, what its rivals cost: measured in one run, told as ratios."""
