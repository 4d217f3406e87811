"""What a run folder holds, and how anything is written into it."""
