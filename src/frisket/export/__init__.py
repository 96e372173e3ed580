"""A Sam as files that run without PyTorch: two ONNX graphs, and a session that answers with them."""
