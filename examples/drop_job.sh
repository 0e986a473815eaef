#!/bin/sh
# Hands a job to dubd by writing files, and waits for its end: for whatever can run a shell and see the folders.
# References are named in the job relative to the inbox, or absolute. The job_id is the file's name.
#
#   drop_job.sh JOB.json ROOT      (ROOT has inbox/, outbox/ and rejected/, as paths.root of the daemon)
set -eu

job=$1 root=$2
name=$(basename "$job" .json)
manifest=$root/outbox/$name/manifest.json

# What an earlier job of this name has left; its manifest is moved aside when the new one is taken.
state() { ls -i "$manifest" 2>/dev/null || true; }
reasons() { ls "$root/rejected/" 2>/dev/null | grep -F "$name." | grep '\.error\.json$' || true; }
earlier=$(state) known=$(reasons)

# Written under a name that is not taken yet, and renamed: the daemon never sees half of it.
cp "$job" "$root/inbox/$name.json.part"
mv "$root/inbox/$name.json.part" "$root/inbox/$name.json"

while [ -z "$(state)" ] || [ "$(state)" = "$earlier" ]; do
    if [ "$(reasons)" != "$known" ]; then
        echo "rejected: see $root/rejected/" >&2
        exit 2
    fi
    sleep 1
done
echo "$manifest"
grep -q '"status": "done"' "$manifest"    # else some lines failed: the manifest says which, and why
