"""The demo world: captions, scenes, a checker, and two small models trained on them."""
