# The enclave's root as an image for Docker: the tree that `make image` built, file by file, and nothing else.
#
#   make image && docker build -t enclaved -f Dockerfile dist/root
FROM scratch
ADD root.tar /
CMD ["tini", "-s", "--", "/usr/local/sbin/enclave.sh"]
