"""Token files of other projects, read into our shards and written from them. Nothing is loaded before it is asked for."""
