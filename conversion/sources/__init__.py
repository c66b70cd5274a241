"""One file per source format; a file added here is a source added."""
