"""A server that speaks OpenAI's chat completions: texts and pictures in, words out, many clients at a time.

Thin on purpose. `chat` reads a body into a `Chat`, `pictures` opens what it shows, `service.Service` makes a
`serving.requests.Request` of both and hands it to a `serving.scheduler.Scheduler`, `speech` makes text of the
tokens that come back, `answers` writes both forms of the answer, and `app` is all that knows of HTTP. Only
`app`, `metrics` and `run` import more than the rest of the library does: the extra `spatialvlm[serve]`.

What is guaranteed:

- **The answer is the model's own**: that of `LoadedVlm.chat` on the same words, pictures and seed, whoever
  else asks; streamed, its pieces are the whole answer; log-probabilities are those of the model's forward.
- **Nothing is passed over in silence**: a field that would change the answer and that is not known, a picture
  that cannot be read, a model that is not there: JSON in the shape of OpenAI's errors, that names it.
- **Nothing is fetched**: a picture is a `data:` URL, or a file below the one folder that may be read.
- **Bounds**: bytes of a body, pixels of a picture before any is decoded, pictures of a request, requests that
  wait, and seconds. A client that leaves frees its row.
"""
