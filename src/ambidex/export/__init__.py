"""A trained model for other programs: a folder for Hugging Face `transformers`, or a GGUF file for llama.cpp and Ollama."""
