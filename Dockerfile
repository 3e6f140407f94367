# docker build -t jaxcifar .
# docker run --rm --user "$(id -u):$(id -g)" --env HOME=/tmp --env JAXCIFAR_DATA=/here/data -v "$PWD:/here" -w /here jaxcifar train quickstart
FROM python:3.11.14-slim-bookworm
COPY pyproject.toml README.md LICENSE constraints.txt /src/
COPY configs /src/configs
COPY jaxcifar /src/jaxcifar
COPY experiments /src/experiments
RUN pip install --no-cache-dir -c /src/constraints.txt -e /src && \
    chmod -R a+rX /src && python -m compileall -q /src
RUN useradd --create-home --uid 1000 jaxcifar
USER jaxcifar
WORKDIR /home/jaxcifar
ENTRYPOINT ["jaxcifar"]
