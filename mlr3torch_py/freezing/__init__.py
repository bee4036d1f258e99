"""One engine per net that decides what is frozen, and the callbacks that declare it."""
