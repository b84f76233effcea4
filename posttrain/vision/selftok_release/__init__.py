"""The published Selftok tokenizer: its networks, its files, and a Llama that writes its tokens."""
