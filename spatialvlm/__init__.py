"""spatialvlm: spatial sense for small vision-language models, and honest proof of it."""
