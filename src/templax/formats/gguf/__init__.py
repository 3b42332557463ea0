"""The format of GGML's programs, such as llama.cpp."""
