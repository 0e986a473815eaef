"""The draft engine, in its worker: what it says, in whose voice, and that nothing else matters."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import sys

import numpy as np
import pytest
import soundfile

from tests.workers.conftest import StartWorker, WorkerUnderTest, descendants, wait_until_ended
from tests.workers.draft.conftest import MakeVoice
from workers.engines.draft.fundamental import median_f0
from workers.protocol import EXIT_ENGINE_BROKE, Message

SENTENCES = {
    "en": "The ferry crosses the sound in forty minutes, and the fog is coming.",
    "zh": "今天天气很好，我们去公园吧。",
    "ja": "きょうはとてもいいてんきですね。",
    "ko": "오늘은 날씨가 아주 좋습니다.",
    "id": "Kapal itu menyeberang dalam empat puluh menit.",
    "de": "Das Schiff fährt in vierzig Minuten über den Sund.",
    "fr": "Le bateau traverse le détroit en quarante minutes.",
    "es": "El barco cruza el estrecho en cuarenta minutos.",
    "pt-BR": "O barco atravessa o estreito em quarenta minutos.",
    "ru": "Паром пересекает пролив за сорок минут.",
    "vi": "Hôm nay trời đẹp quá.",
    "hi": "आज मौसम बहुत अच्छा है।",
    "ar": "الطقس جميل جدا اليوم.",
}


@pytest.fixture
def draft(start_worker: StartWorker) -> WorkerUnderTest:
    worker = start_worker("draft")
    worker.start()
    return worker


def pitch_of(wav: bytes) -> float:
    samples, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    pitch = median_f0(samples, rate)
    assert pitch is not None
    return pitch


def test_what_it_says_of_itself(start_worker: StartWorker) -> None:
    """The library's version and the content of its data are part of what shapes the audio; the job's sampling
    parameters are not, the seed among them."""
    ready = start_worker("draft").start()
    assert ready["engine"] == "draft"
    assert "espeak-ng 1." in ready["engine_version"]
    assert ready["model"].startswith("espeak-ng-")
    assert ready["sample_rate"] == 22_050
    assert ready["device"] == "cpu"
    assert "seed" in ready["ignored"]


@pytest.mark.parametrize("language", SENTENCES)
def test_it_speaks(draft: WorkerUnderTest, language: str) -> None:
    """A sentence of each language takes about as long as a person takes."""
    ticket = draft.speak(SENTENCES[language], language=language)
    answer = draft.answer(ticket)
    assert answer["type"] == "spoken", answer
    information = soundfile.info(draft.wav(ticket))
    assert (information.format, information.subtype, information.channels) == ("WAV", "PCM_16", 1)
    assert information.samplerate == answer["sample_rate"] == 22_050
    assert information.frames == answer["frames"]
    assert 1.0 < information.duration < 8.0


def test_a_wav_depends_on_its_segment_alone(start_worker: StartWorker, make_voice: MakeVoice) -> None:
    """The same twelve segments, backwards, one at a time or many at once, with other things said in between, under
    another seed and in another worker: the same bytes."""
    voices = [make_voice(110), make_voice(190), {"id": "none", "references": []}]
    wanted: list[Message] = [
        {"text": SENTENCES[language], "language": language, "voice": voice}
        for language in ("en", "zh", "ja", "fr")
        for voice in voices
    ]
    first = start_worker("draft")
    first.start(slots=1)
    alone = [first.say(**segment) for segment in wanted]
    second = start_worker("draft")
    second.start(slots=6)
    tickets = []
    for segment in reversed(wanted):
        second.speak("Something else, with breath and echo in it!", voice=voices[1])
        tickets.append(second.speak(**segment, seed=99))
    together = []
    for ticket in tickets:
        assert second.answer(ticket)["type"] == "spoken"
        together.append(second.wav(ticket).read_bytes())
    assert together[::-1] == alone


@pytest.mark.parametrize("f0_hz", [80.0, 100.0, 125.0, 150.0, 175.0, 200.0, 240.0, 300.0])
def test_the_voice_follows_its_reference(draft: WorkerUnderTest, make_voice: MakeVoice, f0_hz: float) -> None:
    """The median pitch of what is spoken lies within 10 % of the reference's, for low and high voices, in English
    and in a language of tones."""
    voice = make_voice(f0_hz)
    assert pitch_of(draft.say(SENTENCES["en"], voice=voice)) == pytest.approx(f0_hz, rel=0.1)
    assert pitch_of(draft.say(SENTENCES["zh"], language="zh", voice=voice)) == pytest.approx(f0_hz, rel=0.1)


def test_languages_that_read_no_numbers_are_tuned_all_the_same(draft: WorkerUnderTest, make_voice: MakeVoice) -> None:
    """By the English scale of the same variant."""
    wav = draft.say("Атӑл ҫинче карап пырать", language="cv", voice=make_voice(200))
    assert pitch_of(wav) == pytest.approx(200, rel=0.25)


def test_speakers_sound_different(draft: WorkerUnderTest, make_voice: MakeVoice) -> None:
    """Also those whose recordings have the same pitch."""
    voices: list[Message] = []
    for number in range(6):
        voice = make_voice(120)
        voice["references"][0]["text"] = f"Sentence {number}."
        voices.append(voice)
    wavs = [draft.say("Who am I?", voice=voice) for voice in voices]
    assert len({hashlib.sha256(wav).digest() for wav in wavs}) == 6


def test_text_is_text(draft: WorkerUnderTest) -> None:
    """Nothing in a line is markup, phoneme code or an embedded command: each of these is spoken, and not as what it
    would be if it were obeyed."""
    for text in ("<b>loud</b>", "[[h@l'oU]]", '<break time="3s"/> pause', "&lt;", "<|im_end|>"):
        draft.say(text)
    assert draft.say("<speak>seven</speak>") != draft.say("seven")
    assert draft.say("a\x01100Pb") == draft.say("a 100Pb")
    assert draft.say("a\x00b\x7f\x85c") == draft.say("a b  c")
    assert draft.say("good\ue03c \ufffe\udc80 night") == draft.say("good     night")


@pytest.mark.parametrize("text", ["", " ", "...", "\x00\x01\x02"])
def test_a_text_without_a_sound_fails_for_good(draft: WorkerUnderTest, text: str) -> None:
    """There is no WAV of nothing."""
    ticket = draft.speak(text)
    failed = draft.answer(ticket)
    assert (failed["code"], failed["retryable"]) == ("nothing_spoken", False)
    assert not draft.wav(ticket).exists()


def test_an_unknown_language_fails_for_good(draft: WorkerUnderTest) -> None:
    """The segment's fault alone: the next one is spoken."""
    failed = draft.answer(draft.speak("Hello.", language="german"))
    assert (failed["code"], failed["retryable"]) == ("unsupported_language", False)
    assert "de" in failed["message"]
    draft.say("Hello.")


def test_it_makes_no_codes(draft: WorkerUnderTest) -> None:
    """And says which engine does."""
    voice: Message = {"id": "a", "references": []}
    draft.send({"type": "encode", "ticket": 50, "voice": voice, "output": {"path": str(draft.wav(50))}})
    failed = draft.answer(50)
    assert (failed["code"], failed["retryable"]) == ("unsupported", False)
    assert "fish" in failed["message"]


def test_a_reference_that_has_gone(draft: WorkerUnderTest) -> None:
    """Fails with its path."""
    reference = {"path": "/nowhere/a.wav", "kind": "audio", "sha256": "0" * 64, "text": "t"}
    failed = draft.answer(draft.speak("Hello.", voice={"id": "a", "references": [reference]}))
    assert failed["code"] == "reference_unreadable"
    assert "/nowhere/a.wav" in failed["message"]


@pytest.mark.parametrize(
    ("rate", "subtype"), [(44_100, "PCM_16"), (48_000, "FLOAT"), (16_000, "PCM_24"), (8_000, "ULAW")]
)
def test_the_output_the_job_asks_for(draft: WorkerUnderTest, rate: int, subtype: str) -> None:
    """Another rate and subtype are the same speech, at the same pitch and length."""
    plain = draft.say(SENTENCES["en"])
    ticket = draft.speak(SENTENCES["en"], sample_rate=rate, subtype=subtype)
    answer = draft.answer(ticket)
    information = soundfile.info(draft.wav(ticket))
    assert (information.samplerate, information.subtype) == (rate, subtype)
    assert (answer["sample_rate"], answer["frames"]) == (rate, information.frames)
    assert information.duration == pytest.approx(soundfile.info(io.BytesIO(plain)).duration, abs=1e-3)
    assert pitch_of(draft.wav(ticket).read_bytes()) == pytest.approx(pitch_of(plain), rel=0.02)
    loudness = [np.abs(soundfile.read(io.BytesIO(wav))[0]).max() for wav in (plain, draft.wav(ticket).read_bytes())]
    assert loudness[0] == pytest.approx(loudness[1], rel=0.1)


@pytest.mark.parametrize("changes", [{"sample_rate": 1}, {"sample_rate": 10**9}, {"subtype": "VORBIS"}])
def test_an_output_no_wav_can_have(draft: WorkerUnderTest, changes: Message) -> None:
    """Fails for good, before or after it was spoken."""
    failed = draft.answer(draft.speak("Hello.", **changes))
    assert (failed["code"], failed["retryable"]) == ("unsupported_output", False)


@pytest.mark.parametrize(("path", "code"), [("/dev/full", "disk_full"), ("/nowhere/wav.tmp", "write_failed")])
def test_a_wav_that_cannot_be_written(draft: WorkerUnderTest, path: str, code: str) -> None:
    """A full disk is told from other troubles; another try may succeed."""
    message = draft.message("Hello.")
    message["output"]["path"] = path
    draft.send(message)
    failed = draft.answer(message["ticket"])
    assert (failed["code"], failed["retryable"]) == (code, True)


def test_a_running_segment_can_be_cancelled(start_worker: StartWorker) -> None:
    """Ten minutes of speech are given up, and the slot is free again."""
    worker = start_worker("draft")
    worker.start(slots=1)
    long = worker.speak("漢" * 2_000, language="ja")
    worker.receive("began", ticket=long)
    worker.send({"type": "cancel", "ticket": long})
    assert worker.answer(long)["type"] in ("cancelled", "spoken")
    worker.say("Hello.")


def test_the_death_of_a_fork_costs_its_segment_alone(start_worker: StartWorker) -> None:
    """Killed from outside while it speaks: that segment fails and may be tried again, the others are spoken."""
    worker = start_worker("draft")
    worker.start(slots=2)
    (zygote,) = descendants(worker.process.pid)
    worker.say("Warm up.", language="ja")
    # Stopped first: what it asks for while the world looks on can't end before it is killed.
    os.kill(zygote, signal.SIGSTOP)
    long = worker.speak("漢" * 2_000, language="ja")
    worker.receive("began", ticket=long)
    os.kill(zygote, signal.SIGCONT)
    forks = descendants(zygote)
    while not forks:
        forks = descendants(zygote)
    os.kill(forks[0], signal.SIGKILL)
    failed = worker.answer(long)
    assert (failed["code"], failed["retryable"]) == ("engine_crashed", True)
    assert "SIGKILL" in failed["message"]
    worker.say("Hello.")


def test_the_death_of_the_speaking_process_ends_the_worker(draft: WorkerUnderTest) -> None:
    """Without it nothing can be spoken: the daemon starts another worker."""
    draft.say("Hello.")
    (zygote,) = descendants(draft.process.pid)
    process = os.pidfd_open(zygote)
    os.kill(zygote, signal.SIGKILL)
    wait_until_ended([process])
    failed = draft.answer(draft.speak("Hello again."))
    assert (failed["code"], failed["retryable"]) == ("engine_error", True)
    assert draft.wait() == EXIT_ENGINE_BROKE


def test_it_works_where_memory_is_never_writable_and_executable(start_worker: StartWorker) -> None:
    """As under systemd's MemoryDenyWriteExecute=; neither espeak-ng's callbacks nor libsndfile need such memory."""
    pr_set_mdwe, refuse_exec_gain = 65, 1
    deny = f"import ctypes, os, sys; ctypes.CDLL(None).prctl({pr_set_mdwe}, {refuse_exec_gain}, 0, 0, 0)"
    worker = start_worker("draft", launcher=(sys.executable, "-c", f"{deny}; os.execv(sys.argv[1], sys.argv[1:])"))
    worker.start()
    worker.say("Hello.", sample_rate=48_000, subtype="FLOAT")


def test_no_files_are_left_open(draft: WorkerUnderTest) -> None:
    """A worker stays for weeks."""

    def count() -> int:
        return len(os.listdir(f"/proc/{draft.process.pid}/fd"))

    draft.say("Hello.")
    before = count()
    for number in range(20):
        draft.say(f"Number {number}.")
        draft.answer(draft.speak(""))
    assert count() == before
