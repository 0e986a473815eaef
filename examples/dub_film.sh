#!/bin/sh
# Dubs a film from its subtitles: FILM.srt and a cast to TRACK.wav, which starts with the film and keeps to its clock.
#
#   dub_film.sh FILM.srt CAST.toml TRACK.wav [OPTION of dubd]...
set -eu

film=$1 cast=$2 track=$3
shift 3

job_id=$(basename "${film%.*}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# 0: all is spoken; 1: some lines failed, and the track is made without them; 2: mistakes in the subtitles or the cast,
# all of them listed; 3: no daemon runs.
dubd srt "$film" --voices "$cast" --output "$folder/$job_id.json" --wait "$@" || [ $? -eq 1 ]

# 1 if anything is missing from the track. A track for each speaker: --per-speaker --output FOLDER
dubd stitch "$job_id" --output "$track" "$@"
