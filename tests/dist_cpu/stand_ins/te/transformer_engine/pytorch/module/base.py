def get_workspace():
    return "workspace"
