"""What is asked about rooms: one file a kind or family of kinds, and one table.

- `kind`: the contract of a kind, and what all measure alike. `table.TABLE`: all of them.
- `choice`: groups of questions that text and simple rules cannot tell apart, found in pools of scenes.
- `sequence.RoomQuestions(seed, kinds, image_size, size, difficulty)[i]`: a question in CV-Bench's schema.
"""
