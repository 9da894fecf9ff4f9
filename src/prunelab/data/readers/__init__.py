"""One reader per data set: each brings its pictures as `ImageArrays`, or raises `DataError`."""
