# A trained model as an image, which a pod's init container copies to the service:
#
#   docker build -t REGISTRY/tim4rec-model:TAG -f deploy/kubernetes/model.Dockerfile artefacts/NAME
#
# Rolling out a model, and rolling it back, is then a change of this image's tag.
# By digest: see deploy/images.env.
ARG BUSYBOX_IMAGE=busybox:1.37
# hadolint ignore=DL3006
FROM ${BUSYBOX_IMAGE}
COPY --chown=10001:10001 . /model/
USER 10001:10001
