"""GGUF files (llama.cpp), read and written by the same tables.

In: `folder.folder_of(file)` makes a folder of a language model's file, which is loaded like any other;
`file` reads headers and tensors, `models` and `words` turn keys into config.json and tokenizer. Out:
`language`, `vision` and `tokens` turn a checkpoint's config, tensors and tokenizer into keys and tensors as
llama.cpp's own converter does, `numbers` says in which of ggml's types, and `writing` writes the file.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, llama.cpp's converter and its loaders.
"""
