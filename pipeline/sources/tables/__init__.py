"""Tables that hold images, or their places: Parquet, Arrow, CSV and its kin, JSON, lists."""
