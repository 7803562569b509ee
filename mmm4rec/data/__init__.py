"""From raw files to prepared domains: registry, download, parsing, text, k-core, images and the invented demo data."""
