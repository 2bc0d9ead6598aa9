"""The work folder of `hf-eagle3 data write`: finished conversations shard by shard, so that a killed run can go on.

A shard is `conversations-00000.safetensors` with its `tally-00000.json`. The tally is written first: it counts only
once its shard is there. Knows nothing of targets or templates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .conversations import Conversation, load_conversations, save_conversations, shard_files, shard_written
from .filters import Gate
from .interview import Interview
from .interviewer import Interviewer, ServerInterviewer
from .sources import Prompt
from .tally import Tally

SHARD_SIZE = 64  # conversations
_LOOKED_AT = 8 * SHARD_SIZE  # interviews, kept or not, after which a shard is written as well


class WorkFolder:
    """What has been done so far for a dataset of certain `settings`, in `folder`; use it in a `with` statement.

    `settings` are what the text depends on. `asked` and `refused` are the numbers of the prompts that are done with,
    `begun` the number of the next self-prompted interview, `tally` what all shards counted.

    Raises:
        ValueError: the folder holds shards that were made with other settings.
        OSError: another process is writing there.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings))
        self.asked: set[int] = set()
        self.refused: set[int] = set()
        self.begun, self.shards, self.tally = 0, 0, Tally()

    def __enter__(self) -> WorkFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise OSError(f"Another process writes to {self.folder}: wait for it, or give another --out.") from error
        try:
            self._check_settings()
            self._read_tallies()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def conversations(self) -> Iterator[Conversation]:
        """All conversations of the shards, in the order they were finished."""
        if self.shards:
            yield from load_conversations(self.folder)

    def remaining(self, prompts: Iterable[Prompt], gate: Gate) -> Iterator[tuple[int, Prompt]]:
        """The prompts still to be asked, with their numbers; `gate` hears of the ones in between at their place, so
        that its verdicts are those of a run that was never interrupted."""
        for number, prompt in enumerate(prompts):
            if number in self.asked:
                gate.remember(prompt.turns)
            elif number not in self.refused:
                yield number, prompt

    def append(self, interviews: list[Interview], begun: int) -> None:
        """One more shard: what became of `interviews`."""
        tally = Tally()
        for interview in interviews:
            tally.merge(interview.tally)
        record = {
            "tally": tally.to_json(),
            "begun": begun,
            "asked": [interview.number for interview in interviews if not interview.refused],
            "refused": [interview.number for interview in interviews if interview.refused],
        }
        write_json(self.folder / f"tally-{self.shards:05d}.json", record)
        examples = [example for interview in interviews for example in interview.examples]
        save_conversations(examples, self.folder / f"conversations-{self.shards:05d}.safetensors")
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.shards += 1
        self.begun = record["begun"]
        self.asked.update(record["asked"])
        self.refused.update(record["refused"])
        self.tally.merge(Tally.from_json(record["tally"]))

    def _check_settings(self) -> None:
        file = self.folder / "settings.json"
        if not (file.exists() and shard_files(self.folder)):  # a run that failed at once has settled nothing
            write_json(file, self.settings)
            return
        before = json.loads(file.read_text(encoding="utf-8"))
        names = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if names:
            told = ", ".join(f"{name} {before.get(name)!r} (now {self.settings.get(name)!r})" for name in names)
            raise ValueError(
                f"{self.folder} holds an unfinished dataset with other settings: {told}. Give the same ones again to "
                "go on with it, remove that folder to begin anew, or give another --out."
            )

    def _read_tallies(self) -> None:
        for number, shard in enumerate(shard_files(self.folder)):
            file = self.folder / f"tally-{number:05d}.json"
            if shard.name != f"conversations-{number:05d}.safetensors" or not file.exists():
                raise OSError(f"{self.folder} lacks a file that belongs to {shard.name}: remove it to begin anew.")
            self._count(json.loads(file.read_text(encoding="utf-8")))


def write_json(file: Path, value: Any) -> None:
    """Write `value` whole or not at all."""
    with shard_written(file) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_shards(
    interviewer: Interviewer | ServerInterviewer,
    work: WorkFolder,
    progress: Callable[[int, int], None] | None = None,
    shard_size: int = SHARD_SIZE,
) -> None:
    """Hold all interviews and keep them in `work`, a shard for every `shard_size` conversations.

    `progress` is called after each interview with the answer tokens and the prompts done, earlier runs included.

    Raises:
        OSError: a shard cannot be written, or the interviewer's server fails.
    """
    ended: list[Interview] = []
    kept = 0
    try:
        for interview in interviewer:
            ended.append(interview)
            kept += bool(interview.examples)
            if kept == shard_size or len(ended) >= _LOOKED_AT:
                try:
                    work.append(ended, interviewer.begun)
                except OSError:
                    ended = []  # a disk that did not take them will not take them below
                    raise
                ended, kept = [], 0
            if progress is not None:
                progress(interviewer.answer_tokens, len(work.asked) + len(work.refused) + len(ended))
    finally:  # what is there is kept when a server fails or the user has had enough
        if ended:
            work.append(ended, interviewer.begun)
