"""SeiT's release layout, in and out."""
