"""One layer's experts, wherever they are computed: layer, router, dispatcher, orchestration, prefetch."""
