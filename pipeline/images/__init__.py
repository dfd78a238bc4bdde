"""Turn image bytes into pixels: decode, resize, cut views."""
