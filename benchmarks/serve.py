"""The server under load: 64 clients with shared pictures beside one at a time, in one run.

  python benchmarks/serve.py [--model=smolvlm-tiny] [--clients=64] [--each=2] [--pictures=8]
  python benchmarks/serve.py --soak=10      # minutes, with broken bodies and clients that leave

Clients are threads of a process of their own; they and the server share the machine's cores, in every
phase. A phase begins with nothing kept (no picture, no prefix) and every program compiled. Prints requests
per second, and what the processors had to do for them, of
  one at a time    one client that waits for each answer before it asks again
  many             all clients at once
  in a loop        `LoadedVlm.chat` one after the other, without a server
and how many answers differ between the phases. `--random` draws the weights anew, so that answers are as
long as they may be; with `--shape=benchmarks/smolvlm-500m` the model has that shape and random weights. The
soak prints answers that are not those of one client by itself, memory, and what is still taken at its end.
"""

import argparse
import base64
import collections
import http.client
import io
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from pathlib import Path

import shaped

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
QUESTIONS = (
  "Which is closer to the camera?",
  "How many cones are in the image?",
  "Describe the picture.",
  "Is the sphere left of the cube?",
)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
  parser.add_argument("--model", default="smolvlm-tiny")
  parser.add_argument("--random", action="store_true", help="random weights, whose answers do not end early")
  parser.add_argument("--shape", type=Path, help="folder with another config.json, for random weights")
  parser.add_argument("--tiles", type=int, help="tile budget of a picture")
  parser.add_argument("--clients", type=int, default=64)
  parser.add_argument("--each", type=int, default=2, help="requests of each client")
  parser.add_argument("--pictures", type=int, default=8, help="that they share")
  parser.add_argument("--answer", type=int, default=24, help="tokens of an answer at most")
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--loop", type=int, default=1, help="0: without the loop of `chat`")
  parser.add_argument("--soak", type=float, default=0.0, help="minutes of load with bad clients; 0 for none")
  parser.add_argument("--as-clients", action="store_true", help=argparse.SUPPRESS)
  return parser.parse_args()


# The clients' process: a plan on standard input, what came of it on standard output.


class Client:
  """One connection, which is kept."""

  def __init__(self, address: str):
    parts = urllib.parse.urlsplit(address)
    self._place, self._path = (parts.hostname, parts.port), f"{parts.path}/chat/completions"
    self._connection = None

  def send(self, body: bytes) -> http.client.HTTPResponse:
    for again in (True, False):
      self._connection = self._connection or http.client.HTTPConnection(*self._place, timeout=600)
      try:
        self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        return self._connection.getresponse()
      except (http.client.HTTPException, OSError):
        self.leave()  # the server closed what it had kept open
        if not again:
          raise

  def ask(self, body: bytes) -> tuple[int, str]:
    """Status and text of a whole answer."""
    response = self.send(body)
    found = json.loads(response.read())
    if response.status != 200:
      return response.status, found["error"]["message"]
    return 200, found["choices"][0]["message"]["content"]

  def stream(self, body: bytes, leave_after: int | None = None) -> tuple[int, str]:
    """As `ask`, of a stream; with `leave_after` the connection is closed behind so many chunks."""
    response, text = self.send(body), ""
    for count, line in enumerate(response):
      if leave_after is not None and count >= leave_after:
        self.leave()
        return 499, text
      if line.startswith(b"data: {"):
        for choice in json.loads(line[6:]).get("choices", []):
          text += choice["delta"].get("content") or ""
    return response.status, text

  def leave(self) -> None:
    if self._connection is not None:
      self._connection.close()
    self._connection = None


def as_clients() -> None:
  plan = json.loads(sys.stdin.read())
  bodies = [body.encode() for body in plan["bodies"]]
  found = soak_of(plan, bodies) if plan["seconds"] else load_of(plan, bodies)
  json.dump(found, sys.stdout)


def load_of(plan: dict, bodies: list[bytes]) -> dict:
  """Every body once, by all clients together: seconds, and the answers."""
  answers: list = [None] * len(bodies)
  left = collections.deque(enumerate(bodies))

  def work() -> None:
    client = Client(plan["address"])
    while left:
      try:
        index, body = left.popleft()
      except IndexError:
        return
      answers[index] = client.ask(body)
    client.leave()

  threads = [threading.Thread(target=work) for _ in range(plan["clients"])]
  began, used = time.perf_counter(), time.process_time()
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  seconds = time.perf_counter() - began
  return {"seconds": seconds, "processor": time.process_time() - used, "answers": answers}


def soak_of(plan: dict, bodies: list[bytes]) -> dict:
  """Good and bad clients for a time: how many of each kind, and what was not as it must be."""
  until, counts, wrong, lock = time.monotonic() + plan["seconds"], collections.Counter(), [], threading.Lock()

  def work(seed: int) -> None:
    rng, client = random.Random(seed), Client(plan["address"])
    while time.monotonic() < until:
      index, kind = (
        rng.randrange(len(bodies)),
        rng.choice(("whole",) * 4 + ("stream", "left", "broken", "bomb")),
      )
      try:
        bad = misbehave(kind, client, bodies[index], plan["answers"][index], plan["bomb"], rng)
      except Exception as error:
        bad = f"{kind}: {type(error).__name__}: {error}"
      with lock:
        counts[kind] += 1
        wrong.extend([bad] if bad else [])

  threads = [threading.Thread(target=work, args=(n,)) for n in range(plan["clients"])]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return {"counts": counts, "wrong": wrong[:20], "count_wrong": len(wrong)}


def misbehave(kind: str, client: Client, body: bytes, alone: str, bomb: str, rng: random.Random) -> str:
  """One request of a kind; what was wrong with its answer."""
  if kind == "whole":
    status, text = client.ask(body)
    return "" if (status, text) == (200, alone) else f"whole: {status} {text!r} for {alone!r}"
  if kind == "stream":
    status, text = client.stream(streamed(body))
    return "" if (status, text) == (200, alone) else f"stream: {status} {text!r} for {alone!r}"
  if kind == "left":
    _, text = client.stream(streamed(body), leave_after=rng.randrange(12))
    return "" if alone.startswith(text.rstrip()) else f"left: {text!r} of {alone!r}"
  broken = bomb.encode() if kind == "bomb" else body[: rng.randrange(1, len(body))]
  status, text = client.ask(broken)
  return "" if status == 400 else f"{kind}: {status} {text}"


def streamed(body: bytes) -> bytes:
  return json.dumps(json.loads(body) | {"stream": True}).encode()


# The server's process.


def pictures(count: int, size: int = 192) -> list:
  from spatialvlm.worlds.questions import SceneQuestions

  return [SceneQuestions(seed=5, image_size=size, size=count)[i].images[0] for i in range(count)]


def data_url(pixels) -> str:
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, "PNG")
  return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def bodies(args: argparse.Namespace, shown: list) -> list[str]:
  """All requests: greedy and drawn ones, on shared pictures."""
  urls, found = [data_url(pixels) for pixels in shown], []
  for i in range(args.clients * args.each):
    parts = [
      {"type": "image_url", "image_url": {"url": urls[i % len(urls)]}},
      {"type": "text", "text": QUESTIONS[i // len(urls) % len(QUESTIONS)]},
    ]
    drawn = {"temperature": 0.8, "seed": i} if i % 2 else {"temperature": 0}
    found.append(
      json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": args.answer} | drawn
      )
    )
  return found


def run_clients(address: str, clients: int, bodies: list[str], **more) -> dict:
  plan = {"address": address, "clients": clients, "bodies": bodies, "seconds": 0} | more
  command, used = [sys.executable, __file__, "--as-clients"], time.process_time()
  done = subprocess.run(command, input=json.dumps(plan), capture_output=True, text=True, check=True)
  found = json.loads(done.stdout)
  # Of server and clients together; it says the same when other work shares the machine.
  found["processor"] = found.get("processor", 0.0) + time.process_time() - used
  return found


def loop_of(vlm, args: argparse.Namespace, shown: list) -> tuple[float, list[str]]:
  """Every request by `chat`, one after the other."""

  def one(i: int) -> str:
    drawn = {"temperature": 0.8, "seed": i} if i % 2 else {}
    question = QUESTIONS[i // len(shown) % len(QUESTIONS)]
    return vlm.chat([shown[i % len(shown)]], question, max_new_tokens=args.answer, **drawn)

  for i in range(2 * len(shown) * len(QUESTIONS)):
    one(i) if i % len(shown) < 2 else None  # compiles
  began = time.perf_counter()
  answers = [one(i) for i in range(args.clients * args.each)]
  return time.perf_counter() - began, answers


def resident() -> float:
  """Megabytes of this process."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def soak(args: argparse.Namespace, service, asked: list[str], answers: list[str]) -> bool:
  """Prints what came of it; whether all was as it must be."""
  from tests.server.support import bomb

  parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"
            + base64.b64encode(bomb(50_000, 50_000)).decode()}}]  # fmt: skip
  hostile = json.dumps({"model": "m", "messages": [{"role": "user", "content": parts}]})
  memory, over = [], threading.Event()

  def watch() -> None:
    while not over.wait(min(15.0, args.soak * 60 / 8)):
      memory.append(resident())

  from spatialvlm.server import run

  with run.served(service) as address:
    threads = threading.active_count()
    watcher = threading.Thread(target=watch)
    watcher.start()
    found = run_clients(address, args.clients, asked, seconds=args.soak * 60, answers=answers, bomb=hostile)
    over.set()
    watcher.join()
    time.sleep(1)
    scheduler = service.scheduler
    left = scheduler.running + scheduler.waiting
    more = threading.active_count() - threads
  kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(found["counts"].items()))
  print(f"soak, {args.soak:g} minutes, {args.clients} clients: {kinds}")
  print(f"wrong: {found['count_wrong']}", *found["wrong"], sep="\n  ")
  half = memory[len(memory) // 2 :]
  print(f"memory, MB: {memory[0]:.0f} first, {half[0]:.0f} half-way, {memory[-1]:.0f} at the end")
  print(f"rows and places still taken: {left}; threads more than at the beginning: {more}")
  return not found["count_wrong"] and not left and memory[-1] < 1.05 * half[0] + 20


def main() -> int:
  args = arguments()
  if args.as_clients:
    as_clients()
    return 0
  import spatialvlm
  from spatialvlm import hub
  from spatialvlm.server import run
  from spatialvlm.server.service import Service, ServiceConfig
  from spatialvlm.serving.lane import SchedulerConfig

  with tempfile.TemporaryDirectory() as folder:
    if args.shape is not None:
      shaped.checkpoint(Path(folder), args.shape)
      args.model = folder
    elif args.random:
      shutil.copytree(hub.resolve(args.model), folder, dirs_exist_ok=True)
      hub.save_model(hub.load_model(folder, from_scratch=True), folder)
      args.model = folder
    vlm = spatialvlm.load_vlm(args.model, max_tiles=args.tiles)
    models = {"m": (vlm.model, vlm.processor)}
    scheduling = SchedulerConfig(rows=args.rows, queue=4 * args.clients)
    fresh = lambda: Service(models, ServiceConfig(), scheduling)
    shown = pictures(args.pictures)
    asked = bodies(args, shown)
    phases = {}
    for name, clients, timed in (
      ("many, to compile", args.clients, False),
      ("one at a time, to compile", 1, False),
      ("one at a time", 1, True),
      ("many", args.clients, True),
    ):
      with run.served(fresh()) as address:
        some = asked if timed else asked[: 2 * args.clients]
        phases[name] = run_clients(address, clients, some)
    alone, many = phases["one at a time"], phases["many"]
    said = [text for _, text in alone["answers"]]
    rate = lambda phase: len(asked) / phase["seconds"]
    print(f"{len(asked)} requests, {len(shown)} pictures, answers of at most {args.answer} tokens")
    print(f"one at a time  {rate(alone):8.2f} requests/s, {alone['processor']:.2f} s of a processor")
    print(f"many           {rate(many):8.2f} requests/s, {many['processor']:.2f} s of a processor")
    ratios = rate(many) / rate(alone), alone["processor"] / many["processor"]
    print(f"many beside one at a time: {ratios[0]:.2f} x by the clock, {ratios[1]:.2f} x by processor time")
    if args.loop:
      seconds, chatted = loop_of(vlm, args, shown)
      print(
        f"in a loop      {len(asked) / seconds:8.2f} requests/s"
        f"   many is {rate(many) * seconds / len(asked):.2f} x"
      )
      print(f"answers that differ from the loop's: {sum(a != b for a, b in zip(said, chatted, strict=True))}")
    differ = sum(a != b for a, b in zip(alone["answers"], many["answers"], strict=True))
    print(f"answers that differ between one at a time and many: {differ}", flush=True)
    good = not differ and all(status == 200 for status, _ in many["answers"])
    if args.soak:
      good &= soak(args, fresh(), asked, said)
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
