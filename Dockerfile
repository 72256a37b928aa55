# The service with the weights of a run, on the CPU:
#   docker build -t visiondistillgc .
#   docker run -p 127.0.0.1:8000:8000 -v "$PWD/models_saved:/app/models_saved:ro" visiondistillgc
FROM python:3.11-slim

# OpenMP for Paddle and scikit-learn
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-serve.txt
COPY models models
COPY utils utils
COPY serve.py serve.html ./

RUN useradd --create-home user
USER user
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# 0.0.0.0 inside the container: which addresses reach it, `docker run -p` decides
CMD ["python", "serve.py", "--host", "0.0.0.0"]
