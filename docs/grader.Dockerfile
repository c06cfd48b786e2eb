# Grade strangers' bundles in a container, as a second wall around the sandbox. From the folder of the project:
#   docker build -f docs/grader.Dockerfile -t tux-grader .
#   mkdir -m 777 grades
#   docker run --rm --network none --read-only --tmpfs /tmp:size=4g --cap-drop ALL \
#     --security-opt no-new-privileges --memory 20g --memory-swap 20g --pids-limit 4096 \
#     -v "$PWD/data:/grader/data:ro" -v "$PWD/bundles:/bundles:ro" -v "$PWD/grades:/grades" \
#     tux-grader /bundles --grades /grades/grades.jsonl --csv /grades/points.csv
FROM python:3.12-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libseccomp2 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /grader
COPY requirements.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY homework homework/
COPY grader grader/
USER 65534:65534
ENTRYPOINT ["python", "-m", "grader", "--require-sandbox"]
CMD ["--help"]
