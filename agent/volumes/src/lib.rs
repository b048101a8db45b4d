//! The agent's own volumes: emptyDir, hostPath, configMap, secret, downwardAPI, projected.
