"""Other systems' settings and output, as their users know them: recipes of search-and-learn in, its columns out."""
