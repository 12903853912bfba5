"""Streams of tasksets: what an agent keeps of earlier tasks while it learns later ones."""
