"""A folder of images: reading any file, the data set and its cache, duplicates."""
