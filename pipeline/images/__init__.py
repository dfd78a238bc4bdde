"""Image bytes become pixels: decode, resize, views."""
